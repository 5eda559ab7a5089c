// Packs each package as it would be published, and looks at the tarball: publint, attw, source maps
// and what it depends on. Fails with what is wrong.

import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { publint } from "publint";
import { formatMessage } from "publint/utils";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
/** What an application gets beside the package itself. */
const DEPENDENCIES = { reattach: [], "reattach-react": [] };

const folder = mkdtempSync(join(tmpdir(), "reattach-pack-"));
/** @type {string[]} */
const wrong = [];
try {
  for (const [name, allowed] of Object.entries(DEPENDENCIES)) look(name, allowed, await pack(name));
} finally {
  rmSync(folder, { recursive: true, force: true });
}
for (const line of wrong) console.error(line);
process.exit(wrong.length > 0 ? 1 : 0);

/**
 * Answers where the tarball is, and the folder that it was unpacked to.
 * @param {string} name
 */
async function pack(name) {
  const where = ["--pack-destination", folder, "--json", "--ignore-scripts"];
  const [{ filename }] = JSON.parse(npm("pack", "--workspace", name, ...where));
  const tarball = join(folder, filename);
  const unpacked = mkdtempSync(join(folder, "unpacked-"));
  execFileSync("tar", ["-xzf", tarball, "-C", unpacked]);
  const found = join(unpacked, "package");
  const { messages, pkg } = await publint({ pkgDir: found, pack: false, strict: true });
  for (const message of messages) wrong.push(`${name}: publint: ${formatMessage(message, pkg)}`);
  return { tarball, found };
}

/**
 * @param {string} name
 * @param {readonly string[]} allowed
 * @param {{ tarball: string, found: string }} packed
 */
function look(name, allowed, { tarball, found }) {
  // Our packages are modules alone: what `require` makes of them is not asked.
  const attw = join(ROOT, "node_modules/@arethetypeswrong/cli/dist/index.js");
  try {
    const command = [attw, tarball, "--profile", "esm-only", "--no-color"];
    execFileSync(process.execPath, command, { encoding: "utf8", stdio: "pipe" });
  } catch (error) {
    const { stdout, stderr } = /** @type {{ stdout: string, stderr: string }} */ (error);
    wrong.push(`${name}: attw: ${stdout}${stderr}`);
  }
  const { dependencies = {} } = JSON.parse(readFileSync(join(found, "package.json"), "utf8"));
  for (const dependency of Object.keys(dependencies)) {
    if (!allowed.includes(dependency)) {
      wrong.push(`${name}: expected no dependency but ${allowed.join() || "none"}: ${dependency}`);
    }
  }
  const listed = readdirSync(found, { recursive: true, encoding: "utf8" });
  const files = new Set(listed.map((path) => join(found, path)));
  for (const file of files) {
    if (!/\.(js|d\.ts)$/.test(file) || !file.startsWith(join(found, "dist"))) continue;
    const map = `${file}.map`;
    if (!files.has(map)) wrong.push(`${name}: expected a source map beside ${file}`);
    else
      for (const source of JSON.parse(readFileSync(map, "utf8")).sources) {
        const path = resolve(dirname(map), source);
        if (!files.has(path)) wrong.push(`${name}: expected ${source} of ${map} in the tarball`);
      }
  }
}

/** @param {string[]} command */
function npm(...command) {
  // Run by npm, it says which one; else it is the one of the path.
  const { npm_execpath: cli } = process.env;
  const [program = "npm", ...first] = cli ? [process.execPath, cli] : [];
  return execFileSync(program, [...first, ...command], { cwd: ROOT, encoding: "utf8" });
}
