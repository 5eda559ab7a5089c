/** Requests to the server beside the line: what has to be asked where there is none yet. */

import { ReattachError } from "./core/errors.js";
import type { Environment } from "./env.js";

/**
 * Posts JSON, or reads where there is no `body`, and answers what came back. Rejects with a
 * `ReattachError`: the server's own, or `unreachable`. With `keepalive` it outlives the page; the
 * browser takes 64 KiB of such at a time. With a `key` it is done once, however often it is asked.
 */
export async function ask(
  env: Pick<Environment, "fetch">,
  url: string,
  token: string | undefined,
  body?: object,
  { keepalive = false, key }: { keepalive?: boolean; key?: string | undefined } = {},
): Promise<unknown> {
  let answer: Response;
  try {
    answer = await env.fetch(url, {
      method: body ? "POST" : "GET",
      keepalive,
      headers: {
        ...(body && { "Content-Type": "application/json" }),
        ...(token !== undefined && { Authorization: `Bearer ${token}` }),
        ...(key !== undefined && { "Idempotency-Key": key }),
      },
      ...(body && { body: JSON.stringify(body) }),
    });
  } catch {
    throw new ReattachError("unreachable", "the server does not answer: try again");
  }
  const said: unknown = await answer.json().catch(() => null);
  if (answer.ok && said !== null) return said;
  const { code, detail } = (said ?? {}) as { code?: unknown; detail?: unknown };
  throw new ReattachError(
    typeof code === "string" ? code : "unreachable",
    typeof detail === "string" ? detail : `expected an answer, got ${answer.status}`,
  );
}
