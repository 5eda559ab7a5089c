import { defineConfig } from "vite";

export default defineConfig({
  // The page does not know under which prefix it will be served.
  base: "./",
  build: {
    outDir: "../../src/reattach/server/inspector/pages",
    emptyOutDir: true,
    target: "es2022",
    // A data: address would need a hole in the policy that the server sends.
    assetsInlineLimit: 0,
    modulePreload: false,
  },
});
