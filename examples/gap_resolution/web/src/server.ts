/** The example's own routes. They are relative to the page, under whatever prefix it is served. */

export const base = new URL(".", location.href).href;

export type Kind = "citation" | "pyproject" | "own";

/** The server was there and did not do it; its message says why. */
export class Refused extends Error {}

/** A document's session, and the key to it that this device keeps, where it has one. */
export interface Place {
  readonly id: string;
  readonly key: string | undefined;
}

/** Opens a document in a new session: the kind's unfinished one, or a text; "own" of a schema. */
export async function openDocument(kind: Kind, text?: string): Promise<Place> {
  const { session_id: id, key } = await post<{ session_id: string; key: string }>("documents", {
    body: { kind, text },
  });
  return { id, key };
}

/** Makes an address that lets another device in on a document, for ten minutes. */
export async function makeLink(place: Place): Promise<string> {
  const { key } = await post<{ key: string }>(`${pathOf(place)}/link`, { key: place.key });
  // Behind the "#": no server is sent it, and none logs it.
  return `${base}#join=${key}/${place.id}`;
}

/** Redeems such an address for a key of this device's own. */
export async function join(id: string, key: string): Promise<Place> {
  const path = pathOf({ id, key });
  return { id, key: (await post<{ key: string }>(`${path}/join`, { body: { key } })).key };
}

/** Asks the server to hold the document against its schema from now on; true when it does. */
export async function watchDocument(place: Place): Promise<boolean> {
  try {
    return (await ask(`${pathOf(place)}/watch`, { key: place.key })).ok;
  } catch {
    return false;
  }
}

export function downloadAddress(place: Place): string {
  return new URL(`${pathOf(place)}/file`, base).href;
}

function pathOf({ id }: Place): string {
  return `documents/${encodeURIComponent(id)}`;
}

interface Asked {
  body?: object;
  key?: string | undefined;
}

function ask(path: string, { body = {}, key }: Asked): Promise<Response> {
  return fetch(new URL(path, base), {
    method: "POST",
    headers: {
      "Content-Type": "application/json",
      ...(key !== undefined && { Authorization: `Bearer ${key}` }),
    },
    body: JSON.stringify(body),
  });
}

async function post<T>(path: string, asked: Asked): Promise<T> {
  const answer = await ask(path, asked);
  if (answer.ok) return (await answer.json()) as T;
  const problem = (await answer.json().catch(() => ({}))) as { detail?: unknown };
  throw new Refused(typeof problem.detail === "string" ? problem.detail : answer.statusText);
}
