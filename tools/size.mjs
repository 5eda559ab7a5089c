/**
 * What a package costs a page: everything that its main entry exports, with its dependencies, bundled and
 * minified by esbuild, gzip -9. Built from the tarball that would be published.
 *
 * Counted is what a page loads before anything of it runs: the entry, and whatever that imports, and so
 * on. What is imported by `import()` is loaded later or never, in files of its own; what these weigh is
 * printed beside it.
 *
 *     node tools/size.mjs            # fails above the bounds
 *     node tools/size.mjs --report   # and says which module weighs what
 */

import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

/**
 * In bytes: `most`, which it must not weigh more than, and `wanted`, what it should weigh at most. What a
 * page that uses the package has anyway is not counted.
 *
 * @type {{ name: string, folder: string, most: number, wanted: number, external: string[] }[]}
 */
const PACKAGES = [
  {
    name: "reattach",
    folder: "packages/client",
    most: 23.5 * 1024,
    wanted: 12 * 1024,
    external: [],
  },
  {
    name: "reattach-react",
    folder: "packages/react",
    most: 3 * 1024,
    wanted: 3 * 1024,
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

/**
 * Answers the files that a page loads at once, and those that it loads later.
 *
 * @param {(typeof PACKAGES)[number]} one
 */
async function sizeOf({ name, folder, external }) {
  const place = mkdtempSync(join(tmpdir(), "reattach-size-"));
  try {
    install(resolve(folder), name, place);
    const { outputFiles, metafile } = await build({
      stdin: { contents: `export * from "${name}";`, resolveDir: place },
      bundle: true,
      splitting: true,
      minify: true,
      format: "esm",
      target: "es2022",
      outdir: place,
      absWorkingDir: place,
      external,
      metafile: true,
      write: false,
    });
    const files = new Map(
      Object.entries(metafile.outputs).map(([path, { imports, inputs }]) => {
        const contents = outputFiles.find((file) => file.path === resolve(place, path))?.contents;
        if (!contents) throw new Error(`expected esbuild to answer ${path}`);
        const gzip = gzipSync(contents, { level: 9 }).length;
        return [path, { gzip, plain: contents.length, imports, inputs }];
      }),
    );
    /** @type {Set<string>} */
    const first = new Set();
    const visit = (/** @type {string} */ path) => {
      if (first.has(path) || !files.has(path)) return;
      first.add(path);
      for (const { kind, path: next } of files.get(path)?.imports ?? []) {
        if (kind === "import-statement") visit(next);
      }
    };
    for (const [path, { entryPoint }] of Object.entries(metafile.outputs)) {
      if (entryPoint === "<stdin>") visit(path);
    }
    const [atOnce, later] = [true, false].map((now) =>
      [...files].filter(([path]) => first.has(path) === now).map(([, file]) => file),
    );
    return { atOnce: atOnce ?? [], later: later ?? [] };
  } finally {
    rmSync(place, { recursive: true });
  }
}

/** @param {{ inputs: Record<string, { bytesInOutput: number }> }[]} files */
function print(files) {
  if (!report) return;
  const parts = files.flatMap(({ inputs }) => Object.entries(inputs));
  for (const [path, { bytesInOutput }] of parts.sort(
    (a, b) => b[1].bytesInOutput - a[1].bytesInOutput,
  )) {
    console.log(`${String(bytesInOutput).padStart(8)}  ${path.split("node_modules/").at(-1)}`);
  }
}

/** @param {{ gzip: number, plain: number }[]} files */
function sum(files) {
  const all = (/** @type {"gzip" | "plain"} */ key) =>
    files.reduce((bytes, file) => bytes + file[key], 0);
  return { gzip: all("gzip"), text: `${all("gzip")} bytes gzip (${all("plain")} minified)` };
}

let failed = false;
for (const one of PACKAGES) {
  const { atOnce, later } = await sizeOf(one);
  const { gzip, text } = sum(atOnce);
  const fits = gzip <= one.most;
  failed ||= !fits;
  const wanted = one.wanted < one.most ? ` (wanted: ${one.wanted})` : "";
  console.log(
    `${one.name}: ${text}, expected at most ${one.most}${wanted}${fits ? "" : ": TOO MUCH"}`,
  );
  print(atOnce);
  if (later.length === 0) continue;
  console.log(`${one.name}: later, or never: ${sum(later).text}`);
  print(later);
}
process.exitCode = failed ? 1 : 0;
