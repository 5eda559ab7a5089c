/** The example's own routes. They are relative to the page, under whatever prefix it is served. */

export const base = new URL(".", location.href).href;

export type Kind = "citation" | "pyproject" | "own";

/** The server was there and did not do it; its message says why. */
export class Refused extends Error {}

/** A document's session, and the token to it that this device keeps. */
export interface Place {
  readonly id: string;
  readonly token: string | undefined;
}

/** Opens a document in a new session: the kind's unfinished one, or a text; "own" of a schema. */
export async function openDocument(kind: Kind, text?: string): Promise<Place> {
  const { session_id: id, token } = await post<{ session_id: string; token: string }>("documents", {
    body: { kind, text },
  });
  return { id, token };
}

/** Where other devices of the local network find this page, and whether they do. */
export interface Address {
  readonly address: string | null;
  readonly reachable: boolean;
}

/** Whether this page was opened by an address that is this machine's alone. */
export function onlyHere(name = location.hostname): boolean {
  return name === "localhost" || name === "[::1]" || name.startsWith("127.");
}

export async function addressForOthers(): Promise<Address> {
  try {
    const answer = await fetch(new URL("address", base));
    if (answer.ok) return (await answer.json()) as Address;
  } catch {
    // Without the server there is no link either.
  }
  return { address: null, reachable: false };
}

/** Has the server hold the document against its schema; true when it did. */
export async function detectGaps(place: Place): Promise<boolean> {
  try {
    return (await ask(`${pathOf(place)}/detect`, { token: place.token })).ok;
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
  token?: string | undefined;
}

function ask(path: string, { body = {}, token }: Asked): Promise<Response> {
  return fetch(new URL(path, base), {
    method: "POST",
    headers: {
      "Content-Type": "application/json",
      ...(token !== undefined && { Authorization: `Bearer ${token}` }),
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
