"""The way in: HTTP, WebSocket and Server-Sent Events, each a thin shell over the runtime."""
