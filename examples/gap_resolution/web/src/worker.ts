/**
 * Lets the page start without its server: keeps what was built, and gives it back when the network
 * does not. It knows nothing of sessions; `reattach` keeps those in IndexedDB by itself.
 *
 * How others do the same is in `docs/offline.md`.
 */

// Filled in by the build (`vite.config.ts`).
declare const __FILES__: readonly string[];
declare const __BUILD__: string;
declare const self: ServiceWorkerGlobalScope;

const CACHE = `gap-resolution ${__BUILD__}`;
const FILES = new Set(__FILES__.map((file) => new URL(file, self.registration.scope).href));
/** A server that says nothing for this long counts as none. */
const PATIENCE_MS = 3_000;

self.addEventListener("install", (event) => {
  event.waitUntil(
    caches
      .open(CACHE)
      // Not from the browser's own cache: page and assets must be of one build.
      .then((cache) => cache.addAll([...FILES].map((url) => new Request(url, { cache: "reload" }))))
      .then(() => self.skipWaiting()),
  );
});

self.addEventListener("activate", (event) => {
  const tidy = async () => {
    const names = await caches.keys();
    const old = names.filter((name) => name.startsWith("gap-resolution ") && name !== CACHE);
    await Promise.all(old.map((name) => caches.delete(name)));
    await self.clients.claim();
  };
  event.waitUntil(tidy());
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET") return;
  const url = new URL(request.url);
  url.hash = "";
  // Nothing else is ours: the sessions' routes, the application's own, other sites.
  if (!FILES.has(url.href)) return;
  if (request.mode === "navigate") event.respondWith(page(request, url.href));
  else event.respondWith(asset(request));
});

/** The newest page where there is a server, else the one that was kept. */
async function page(request: Request, url: string): Promise<Response> {
  const given = new AbortController();
  const timer = setTimeout(() => given.abort(), PATIENCE_MS);
  try {
    const answer = await fetch(request, { signal: given.signal });
    if (answer.status < 500) return answer;
  } catch {
    // No network, no server, or one that does not answer.
  } finally {
    clearTimeout(timer);
  }
  const kept = await caches.match(url, { cacheName: CACHE });
  return kept ?? Response.error();
}

/** Assets are named after what is in them: one that was kept is the right one. */
async function asset(request: Request): Promise<Response> {
  const kept = await caches.match(request, { cacheName: CACHE });
  return kept ?? fetch(request);
}
