// Keeps the page's own static files, and says that the server is away when it is. It keeps nothing else.

const STORE = "static";
const AWAY = "/static/away.html";
const NEEDED = [AWAY, "/static/base.css", "/static/away.css", "/static/mark.svg"];

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(STORE).then((store) => store.addAll(NEEDED)));
  self.skipWaiting();
});
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  const { request } = event;
  const { origin, pathname } = new URL(request.url);
  if (request.method !== "GET" || origin !== self.location.origin) return;
  if (request.mode === "navigate" && ["/", "/stats"].includes(pathname)) {
    event.respondWith(fetch(request).catch(() => caches.match(AWAY)));
  } else if (pathname.startsWith("/static/")) {
    event.respondWith(newest(request));
  }
});

async function newest(request) {
  try {
    const response = await fetch(request);
    if (response.ok) (await caches.open(STORE)).put(request, response.clone());
    return response;
  } catch (error) {
    const kept = await caches.match(request);
    if (kept) return kept;
    throw error;
  }
}
