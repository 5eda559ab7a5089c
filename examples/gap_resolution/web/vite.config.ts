import { createHash } from "node:crypto";
import { defineConfig, type Plugin } from "vite";

/**
 * Completes the service worker with the list of what was built, and gives it a name without a hash:
 * a browser asks for it again by that name. A build with other files makes another worker.
 */
function precache(): Plugin {
  return {
    name: "precache",
    enforce: "post",
    generateBundle(_, bundle) {
      const worker = Object.values(bundle).find(({ fileName }) => fileName === "worker.js");
      if (worker?.type !== "chunk") throw new Error("expected worker.js among what was built");
      const files = Object.keys(bundle).filter((name) => /^assets\/.*\.(js|css)$/.test(name));
      const hash = createHash("sha256");
      for (const file of Object.values(bundle)) {
        hash.update("code" in file ? file.code : file.source);
      }
      worker.code = worker.code
        .replace("__FILES__", JSON.stringify(["./", "favicon.svg", ...files]))
        .replace("__BUILD__", JSON.stringify(hash.digest("hex").slice(0, 16)));
    },
  };
}

export default defineConfig({
  // The page does not know under which prefix it will be served.
  base: "./",
  plugins: [precache()],
  resolve: { dedupe: ["react", "react-dom"] },
  build: {
    outDir: "../pages",
    emptyOutDir: true,
    target: "es2022",
    // A data: address would need a hole in the policy that the server sends.
    assetsInlineLimit: 0,
    modulePreload: false,
    // React and the form library are all of it, and the service worker keeps them.
    chunkSizeWarningLimit: 700,
    rolldownOptions: {
      // "use client" is for renderers on servers, of which there is none here.
      onLog: (level, log, tell) => {
        if (log.code !== "MODULE_LEVEL_DIRECTIVE") tell(level, log);
      },
      input: { index: "index.html", worker: "src/worker.ts" },
      output: {
        entryFileNames: (chunk) =>
          chunk.name === "worker" ? "worker.js" : "assets/[name]-[hash].js",
      },
    },
  },
});
