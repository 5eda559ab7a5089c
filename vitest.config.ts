import { defineConfig } from "vitest/config";

// Each package has a configuration of its own; from here they run together.
export default defineConfig({
  test: { projects: ["packages/*"] },
});
