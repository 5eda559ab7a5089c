// Prints the path of a Chromium that was just seen to start and to run a page's script.
//
// In this order: what REATTACH_CHROMIUM names; the one that the npm package @sparticuz/chromium
// carries, unpacked once into .cache/chromium; one that is installed on the machine.
// Ends with 1 and the reasons when none of them runs.

import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { chmod, mkdir, mkdtemp, readFile, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** @typedef {import("node:stream").Readable} Readable */
/** @typedef {import("node:stream").Writable} Writable */

/** Seconds. Starting takes less than one, on a busy machine a few. */
const PATIENCE = 30;

/** What the tests start it with, too: see tests/support/chromium.py. */
const FLAGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

/**
 * Nothing if it runs a page's script, else the reason. Asked over the DevTools pipe, as the tests
 * do: not every headless build understands --dump-dom.
 * @param {string} executable
 * @returns {Promise<string | undefined>}
 */
async function failure(executable) {
  const profile = await mkdtemp(join(tmpdir(), "reattach-chromium-"));
  const args = [...FLAGS, `--user-data-dir=${profile}`, "--remote-debugging-pipe"];
  const browser = spawn(executable, args, {
    stdio: ["ignore", "ignore", "pipe", "pipe", "pipe"],
    detached: true,
  });
  const [, , stderr, input, output] =
    /** @type {[unknown, unknown, Readable, Writable, Readable]} */ (browser.stdio);
  const ended = new Promise((resolve) => browser.once("close", resolve));
  let complaints = "";
  stderr.on("data", (chunk) => {
    complaints = (complaints + chunk).slice(-600);
  });
  try {
    return await new Promise((resolve) => {
      let text = "";
      /** @param {number} id @param {string} method @param {object} params @param {object} [more] */
      const call = (id, method, params, more) =>
        input.write(`${JSON.stringify({ id, method, params, ...more })}\0`);
      input.on("error", () => {}); // it ended: "close" tells
      browser.once("error", (error) => resolve(String(error)));
      browser.once("close", (code) => resolve(`ended with ${code}: ${complaints}`));
      setTimeout(
        () => resolve(`no answer in ${PATIENCE} s: ${complaints}`),
        PATIENCE * 1000,
      ).unref();
      output.on("data", (chunk) => {
        text += chunk;
        const frames = text.split("\0");
        text = frames.pop() ?? "";
        for (const { id, result, error } of frames.map((frame) => JSON.parse(frame))) {
          if (error) resolve(JSON.stringify(error));
          else if (id === 1)
            call(2, "Target.attachToTarget", { targetId: result.targetId, flatten: true });
          else if (id === 2)
            call(3, "Runtime.evaluate", { expression: "6 * 7" }, { sessionId: result.sessionId });
          else if (id === 3)
            resolve(result.result.value === 42 ? undefined : JSON.stringify(result));
        }
      });
      call(1, "Target.createTarget", { url: "about:blank" });
    });
  } finally {
    try {
      // The group: a wrapper, zygotes and renderers go with it.
      if (browser.pid !== undefined) process.kill(-browser.pid, "SIGKILL");
    } catch {} // it ended by itself
    if (browser.pid !== undefined) await ended;
    await rm(profile, { recursive: true, force: true, maxRetries: 5 });
  }
}

/**
 * The browser from npm, unpacked. The package unpacks into $TMPDIR; a folder of the checkout
 * outlives the run and is readable by whoever runs the tests.
 * @returns {Promise<string[]>} executables to try
 */
async function fromNpm() {
  const manifest = join(root, "node_modules/@sparticuz/chromium/package.json");
  if (!existsSync(manifest)) return [];
  const { version } = JSON.parse(await readFile(manifest, "utf8"));
  const cache = join(root, ".cache/chromium");
  const home = join(cache, version);
  if (!existsSync(home)) {
    await mkdir(cache, { recursive: true });
    const fresh = await mkdtemp(join(cache, ".unpacking-"));
    const before = process.env.TMPDIR;
    process.env.TMPDIR = fresh;
    // The package brings NSS for this platform only; a bare machine lacks it as well.
    process.env.AWS_EXECUTION_ENV = "AWS_Lambda_nodejs22.x";
    const { default: chromium } = await import("@sparticuz/chromium");
    const executable = await chromium.executablePath();
    if (before === undefined) delete process.env.TMPDIR;
    else process.env.TMPDIR = before;
    await chmod(executable, 0o755);
    const wrapper = [
      "#!/bin/sh",
      '# For a machine without NSS: with the libraries that came along. "exec" keeps the process id.',
      `here=$(dirname "$0")`,
      `LD_LIBRARY_PATH="$here/al2023/lib" exec "$here/chromium" "$@"`,
    ];
    await writeFile(join(fresh, "chromium-with-libraries"), `${wrapper.join("\n")}\n`);
    await chmod(join(fresh, "chromium-with-libraries"), 0o755);
    await chmod(fresh, 0o755);
    // In one step, so that nobody finds half a browser. Who comes second uses the first one's.
    try {
      await rename(fresh, home);
    } catch (error) {
      await rm(fresh, { recursive: true, force: true });
      if (!existsSync(home)) throw error;
    }
  }
  return [join(home, "chromium"), join(home, "chromium-with-libraries")];
}

/** @returns {string[]} */
function installed() {
  const names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
  const folders = (process.env.PATH ?? "").split(delimiter);
  return folders.flatMap((folder) => names.map((name) => join(folder, name))).filter(existsSync);
}

const reasons = [];
const named = process.env.REATTACH_CHROMIUM;
const sources = named ? [async () => [resolve(named)]] : [fromNpm, async () => installed()];
for (const source of sources) {
  const executables = await source().catch((error) => {
    reasons.push(String(error));
    return [];
  });
  for (const executable of executables) {
    const reason = await failure(executable);
    if (reason === undefined) {
      console.log(executable);
      process.exit(0);
    }
    reasons.push(`${executable}: ${reason}`);
  }
}
console.error(
  [
    "No Chromium that runs. The browser tests need one: run `make install`, or set",
    "REATTACH_CHROMIUM to the path of one. What was tried:",
    ...(reasons.length > 0 ? reasons : ["nothing was found"]),
  ].join("\n"),
);
process.exit(1);
