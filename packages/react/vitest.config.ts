import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    name: "reattach-react",
    include: ["test/**/*.test.{ts,tsx}"],
    environment: "happy-dom",
    testTimeout: 10_000,
  },
});
