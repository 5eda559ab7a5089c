/** The example's own routes. They are relative to the page, under whatever prefix it is served. */

export const base = new URL(".", location.href).href;

/** Opens the unfinished document in a new session, and answers its id. */
export async function openDocument(): Promise<string> {
  const answer = await fetch(new URL("documents", base), { method: "POST" });
  if (!answer.ok) throw new Error(`expected 201, got ${answer.status}`);
  const { session_id } = (await answer.json()) as { session_id: string };
  return session_id;
}

/** Asks the server to hold the document against its schema from now on; true when it does. */
export async function watchDocument(session: string): Promise<boolean> {
  const path = `documents/${encodeURIComponent(session)}/watch`;
  try {
    return (await fetch(new URL(path, base), { method: "POST" })).ok;
  } catch {
    return false;
  }
}

export function downloadAddress(session: string): string {
  return new URL(`documents/${encodeURIComponent(session)}.cff`, base).href;
}
