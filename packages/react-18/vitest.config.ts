import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));

// The tests of reattach-react, on React 18.
export default defineConfig({
  resolve: {
    alias: ["react-dom", "react", "@testing-library/react"].map((name) => ({
      find: new RegExp(`^${name}(?=$|/)`),
      replacement: here(`node_modules/${name}`),
    })),
  },
  test: {
    name: "reattach-react-18",
    dir: here("../react/test"),
    include: ["**/*.test.{ts,tsx}"],
    environment: "happy-dom",
    env: { REACT: "18" },
    testTimeout: 10_000,
  },
});
