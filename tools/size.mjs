/**
 * What a package costs a page: everything that its main entry exports, with its dependencies, bundled and
 * minified by esbuild, gzip -9. Built from the tarball that would be published.
 *
 *     node tools/size.mjs            # fails above the bounds
 *     node tools/size.mjs --report   # and says which module weighs what
 */

import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

/**
 * Bounds in bytes. What a page that uses the package has anyway is not counted.
 *
 * @type {{ name: string, folder: string, most: number, external: string[] }[]}
 */
const PACKAGES = [
  { name: "reattach", folder: "packages/client", most: 12 * 1024, external: [] },
  {
    name: "reattach-react",
    folder: "packages/react",
    most: 3 * 1024,
    external: ["react", "react/jsx-runtime", "reattach"],
  },
];

const report = process.argv.includes("--report");

/**
 * Packs a package and unpacks it as an installation would have it.
 *
 * @param {string} folder
 * @param {string} name
 * @param {string} place
 */
function install(folder, name, place) {
  // npm says where it is itself to what it runs; otherwise it is in the path.
  const npm = process.env.npm_execpath;
  const [command, before] = npm ? [process.execPath, [npm]] : ["npm", []];
  const packed = execFileSync(
    command,
    [...before, "pack", "--json", "--ignore-scripts", "--pack-destination", place],
    { cwd: folder, encoding: "utf8" },
  );
  const [{ filename }] = JSON.parse(packed);
  const target = join(place, "node_modules", name);
  mkdirSync(target, { recursive: true });
  execFileSync("tar", ["-xzf", join(place, filename), "-C", target, "--strip-components=1"]);
}

/** @param {(typeof PACKAGES)[number]} one */
async function sizeOf({ name, folder, external }) {
  const place = mkdtempSync(join(tmpdir(), "reattach-size-"));
  try {
    install(resolve(folder), name, place);
    for (const dependency of ["idb"]) {
      symlinkSync(resolve("node_modules", dependency), join(place, "node_modules", dependency));
    }
    const { outputFiles, metafile } = await build({
      stdin: { contents: `export * from "${name}";`, resolveDir: place },
      bundle: true,
      minify: true,
      format: "esm",
      target: "es2022",
      external,
      metafile: true,
      write: false,
    });
    const contents = outputFiles[0]?.contents;
    const inputs = Object.values(metafile.outputs)[0]?.inputs;
    if (!contents || !inputs) throw new Error(`expected esbuild to answer a bundle of ${name}`);
    return { gzip: gzipSync(contents, { level: 9 }).length, plain: contents.length, inputs };
  } finally {
    rmSync(place, { recursive: true });
  }
}

let failed = false;
for (const one of PACKAGES) {
  const { gzip, plain, inputs } = await sizeOf(one);
  const fits = gzip <= one.most;
  failed ||= !fits;
  console.log(
    `${one.name}: ${gzip} bytes gzip (${plain} minified), expected at most ${one.most}${fits ? "" : ": TOO MUCH"}`,
  );
  if (!report) continue;
  const parts = Object.entries(inputs).sort((a, b) => b[1].bytesInOutput - a[1].bytesInOutput);
  for (const [path, { bytesInOutput }] of parts) {
    console.log(`${String(bytesInOutput).padStart(8)}  ${path.split("node_modules/").at(-1)}`);
  }
}
process.exitCode = failed ? 1 : 0;
