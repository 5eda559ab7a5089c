/**
 * Writes the reference of the packages' public names, from the docstrings of what is built: `docs/reference-*.md`.
 * Fails where an exported name has none.
 *
 *     node tools/reference.mjs           # make reference
 *     node tools/reference.mjs --check   # part of make lint: fails when a page is stale
 */

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseSync } from "vite";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

/**
 * A node of the syntax tree, as far as it is looked at here.
 *
 * @typedef {{
 *   type: string, start: number, end: number, name?: string, value?: unknown, kind?: string,
 *   source?: { value: string } | null, declaration?: Node | null, id?: Node | null, key?: Node,
 *   local?: Node, exported?: Node, imported?: Node, expression?: Node, typeAnnotation?: Node,
 *   specifiers?: Node[], declarations?: Node[], body?: Node[] | { body: Node[], start: number, end: number },
 * }} Node
 */

/** @typedef {{ path: string, source: string, body: Node[], comments: { start: number, end: number, value: string }[] }} Module */

/** @typedef {{ module: Module, node: Node, statement: Node }} Declared */

/** A page, and the packages' entries that it is of. */
const PAGES = [
  {
    page: "docs/reference-client.md",
    title: "Reference: the TypeScript client",
    entries: [
      { name: "reattach", folder: "packages/client/dist", file: "index.d.ts" },
      { name: "reattach/form", folder: "packages/client/dist", file: "form.d.ts" },
    ],
  },
  {
    page: "docs/reference-react.md",
    title: "Reference: the React adapter",
    entries: [{ name: "reattach-react", folder: "packages/react/dist", file: "index.d.ts" }],
  },
];

/** Values before types, and what is made before what it is made with. */
const ORDER = ["function", "class", "const", "interface", "type"];

/** @type {Map<string, Module>} */
const modules = new Map();

/**
 * @param {string} path
 * @returns {Module}
 */
function load(path) {
  const known = modules.get(path);
  if (known) return known;
  if (!existsSync(path))
    throw new Error(`expected ${path}: build the packages first, make install`);
  const source = readFileSync(path, "utf8");
  const { program, comments, errors } = parseSync(path, source, { lang: "dts" });
  if (errors.length > 0) throw new Error(`expected declarations in ${path}: ${errors[0]?.message}`);
  const body = /** @type {Node[]} */ (/** @type {unknown} */ (program.body));
  const module = { path, source, body, comments };
  modules.set(path, module);
  return module;
}

/**
 * @param {Module} from
 * @param {string} name
 */
function neighbour(from, name) {
  return load(join(dirname(from.path), name.replace(/\.js$/, ".d.ts")));
}

/**
 * The names that a declaration makes.
 *
 * @param {Node} node
 */
function namesOf(node) {
  const made = node.declarations ?? [node];
  return made.map(({ id }) => id?.name);
}

/**
 * Every declaration of a name, in its module or where that has it from: a function has one for each of
 * its signatures.
 *
 * @param {Module} module
 * @param {string} name
 * @returns {Declared[]}
 */
function find(module, name) {
  /** @type {Declared[]} */
  const found = [];
  for (const statement of module.body) {
    const node = statement.declaration ?? statement;
    if (namesOf(node).includes(name)) found.push({ module, node, statement });
  }
  if (found.length > 0) return found;
  for (const { type, source, specifiers = [] } of module.body) {
    if (!source) continue;
    const one = specifiers.find(({ local, exported }) => (exported ?? local)?.name === name);
    const there = (one?.imported ?? one?.local)?.name;
    if (there) return find(neighbour(module, source.value), there);
    if (type !== "ExportAllDeclaration") continue;
    const all = find(neighbour(module, source.value), name);
    if (all.length > 0) return all;
  }
  return [];
}

/**
 * What an entry exports, in the order in which it says so.
 *
 * @param {Module} entry
 */
function exportsOf(entry) {
  /** @type {Map<string, Declared[]>} */
  const all = new Map();
  for (const statement of entry.body) {
    if (statement.type !== "ExportNamedDeclaration") continue;
    const { declaration, source, specifiers = [] } = statement;
    for (const name of declaration ? namesOf(declaration) : []) {
      if (name) all.set(name, find(entry, name));
    }
    for (const { local, exported } of specifiers) {
      const from = source ? neighbour(entry, source.value) : entry;
      if (exported?.name) all.set(exported.name, find(from, local?.name ?? ""));
    }
  }
  return all;
}

/**
 * The text of the docstring right before a place; empty where there is none.
 *
 * @param {Module} module
 * @param {number} at
 */
function docBefore({ source, comments }, at) {
  const before = comments.filter(({ end }) => end <= at).at(-1);
  if (!before?.value.startsWith("*") || source.slice(before.end, at).trim() !== "") return "";
  return cleaned(before.value);
}

/** @param {string} comment */
function cleaned(comment) {
  const lines = comment.slice(1).split("\n");
  return lines
    .map((line) => line.replace(/^\s*\* ?/, "").trimEnd())
    .join("\n")
    .trim();
}

/**
 * A declaration's text without comments, on as few lines as it has.
 *
 * @param {Module} module
 * @param {{ start: number, end: number }} node
 */
function textOf({ source, comments }, { start, end }) {
  let text = "";
  let at = start;
  for (const comment of comments) {
    if (comment.start < start || comment.end > end) continue;
    text += source.slice(at, comment.start);
    at = comment.end;
  }
  text += source.slice(at, end);
  return text
    .replace(/^\s*\n/gm, "")
    .replace(/^declare /, "")
    .trim();
}

/** @param {Node} node */
function kindOf({ type, kind }) {
  if (type === "TSDeclareFunction") return "function";
  if (type === "ClassDeclaration") return "class";
  if (type === "TSInterfaceDeclaration") return "interface";
  return type === "VariableDeclaration" ? (kind ?? "const") : "type";
}

/**
 * The public members of a class or an interface: text and docstring of each.
 *
 * @param {Declared} declared
 */
function membersOf({ module, node }) {
  if (!node.body || Array.isArray(node.body)) return [];
  const { body } = node.body;
  return body
    .filter(({ key, kind }) => key?.type !== "PrivateIdentifier" && kind !== "constructor")
    .map((member) => ({
      text: textOf(module, member)
        .replace(/;$/, "")
        .replace(/\s*\n\s*/g, " "),
      doc: docBefore(module, member.start),
    }));
}

/**
 * A declaration up to its body, with the body where it has no members to be told one by one.
 *
 * @param {Declared} declared
 * @param {boolean} whole
 */
function headOf({ module, node }, whole) {
  if (whole || !node.body || Array.isArray(node.body)) return textOf(module, node);
  return `${textOf(module, { start: node.start, end: node.body.start })} { … }`;
}

/**
 * @param {string} name
 * @param {Declared[]} declared
 * @returns {{ kind: string, text: string }}
 */
function section(name, declared) {
  const [first] = declared;
  if (!first) throw new Error(`expected to find where ${name} is declared`);
  const kind = kindOf(first.node);
  const lines = [`### \`${name}\``, ""];
  for (const one of declared) {
    const members = membersOf(one);
    const told = members.some(({ doc }) => doc !== "");
    const head = headOf(one, !told).replace("extends Session_base", "extends EventTarget");
    lines.push("```ts", head, "```", "");
    const doc = docBefore(one.module, one.statement.start);
    if (doc !== "") lines.push(doc, "");
    for (const member of told ? members : []) {
      const indented = member.doc.split("\n").map((line) => (line === "" ? "" : `  ${line}`));
      lines.push(`- \`${member.text}\``, ...(member.doc === "" ? [] : ["", ...indented]), "");
    }
    if (doc === "" && !told && kind !== "type" && kind !== "interface") missing.push(name);
  }
  return { kind, text: lines.join("\n") };
}

/** @type {string[]} */
const missing = [];

/** @param {(typeof PAGES)[number]} page */
function pageOf({ title, entries }) {
  const parts = [`# ${title}`, "", "Made from the docstrings by `make reference`.", ""];
  for (const { name, folder, file } of entries) {
    const entry = load(resolve(ROOT, folder, file));
    parts.push(`## \`${name}\``, "");
    const sections = [...exportsOf(entry)].map(([one, declared]) => section(one, declared));
    for (const kind of ORDER) {
      for (const one of sections) if (one.kind === kind) parts.push(one.text);
    }
  }
  return `${parts
    .join("\n")
    .replace(/\n{3,}/g, "\n\n")
    .trim()}\n`;
}

const check = process.argv.includes("--check");
for (const page of PAGES) {
  const text = pageOf(page);
  const target = resolve(ROOT, page.page);
  if (!check) writeFileSync(target, text);
  else if (!existsSync(target) || readFileSync(target, "utf8") !== text) {
    console.error(`expected ${page.page} to be what the docstrings say: run make reference`);
    process.exitCode = 1;
  }
}
if (missing.length > 0) {
  console.error(`expected a docstring of ${missing.join(", ")}`);
  process.exitCode = 1;
}
