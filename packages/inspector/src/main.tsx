import { createRoot } from "react-dom/client";
import { App } from "./app.js";

const root = document.getElementById("app");
if (root === null) throw new Error("expected an element with the id app in the page");
createRoot(root).render(<App />);
