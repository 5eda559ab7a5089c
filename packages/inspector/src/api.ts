// What the page reads and writes: the routes under `api/`, beside the page, whatever its prefix.

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

export interface Me {
  id: string;
  writes: boolean;
  release: string;
  schemas: string[];
}

export interface Summary {
  session_id: string;
  epoch: string;
  version: number;
  user_id: string;
  schema: { name: string; version: number } | null;
  created_at: number;
  last_activity: number;
  is_active: boolean;
  disconnected_at: number | null;
  reconnected_at: number | null;
}

export interface Listed extends Summary {
  online: boolean;
}

export interface Device {
  id: string;
  name: string | null;
  info: { [key: string]: Json };
  user_id: string;
  online: boolean;
  is_primary: boolean;
  created_at: number;
  last_activity: number;
  version: number | null;
  revoked_at: number | null;
}

export interface Session extends Summary {
  epoch_version: number;
  first_version: number;
  devices: Device[];
  clients: { client_id: string; user_id: string; device_id: string }[];
  members: { user_id: string; role: string }[];
}

export interface Slot {
  slot: number;
  client_id: string | null;
  commits: number;
  bytes: number;
  first_version: number;
  last_version: number;
  first_at: number;
  last_at: number;
}

export interface Timeline {
  first: number;
  last: number;
  width: number;
  items: Slot[];
}

export interface Commit {
  version: number;
  at: number;
  client_id: string | null;
  device_id: string | null;
  user_id: string | null;
  source: string | null;
  bytes: number;
  operations: number;
  paths: string[];
  more_paths: number;
  conflicts: number;
  restored: number | null;
}

export interface Checkpoint {
  id: string;
  name: string | null;
  kind: "automatic" | "named" | "before_restore";
  version: number;
  step?: Json;
  data?: Json;
  created_at: number;
}

export interface Side {
  value?: Json;
  absent?: true;
  by?: { client_id?: string; device_id?: string; user_id?: string };
  at: number;
  version?: number;
}

export interface Conflict {
  id: string;
  path: string;
  policy: string;
  status: "auto" | "open" | "resolved";
  version: number;
  kept: Side;
  lost: Side;
}

export interface Refusal {
  client_id: string;
  at: number;
  refusal: { seq: number; code: string; message: string; path?: string };
}

export interface Activity {
  activity_type: string;
  at: number;
  user_id: string | null;
  device_id: string | null;
  data: { [key: string]: Json };
}

export interface NodeFigures {
  node: string;
  name: string;
  at: number;
  online: number;
  figures: { [name: string]: number };
}

export interface Page<T> {
  items: T[];
  next: string | null;
}

export interface Stands {
  epoch: string;
  version: number;
  online: string[];
}

/** What the server answered instead: `code` is for programs, the message for people. */
export class Problem extends Error {
  override readonly name = "Problem";
  readonly status: number;
  readonly code: string;

  constructor(status: number, code: string, message: string) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

const TOKEN = "reattach.inspector.token";

/** The token lives as long as the tab: whoever opens the browser next does not find it. */
export const token = {
  get: () => sessionStorage.getItem(TOKEN),
  set: (value: string) => sessionStorage.setItem(TOKEN, value),
  clear: () => sessionStorage.removeItem(TOKEN),
};

async function ask(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  const known = token.get();
  if (known !== null) headers.set("Authorization", `Bearer ${known}`);
  let answer: Response;
  try {
    answer = await fetch(new URL(`api/${path}`, document.baseURI), { ...init, headers });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new Problem(0, "away", "The server does not answer.");
  }
  if (answer.ok) return answer;
  const said = (await answer.json().catch(() => ({}))) as { code?: string; detail?: string };
  const detail = said.detail ?? `The server answered ${answer.status}.`;
  throw new Problem(answer.status, said.code ?? "error", detail);
}

type Query = { [name: string]: string | number | boolean | null | undefined };

export async function get<T>(path: string, query: Query = {}, signal?: AbortSignal): Promise<T> {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined) search.set(name, String(value));
  }
  const tail = search.size > 0 ? `?${search}` : "";
  const answer = await ask(`${path}${tail}`, signal === undefined ? {} : { signal });
  return (await answer.json()) as T;
}

export async function post<T>(path: string, body: unknown): Promise<T> {
  const headers = { "Content-Type": "application/json" };
  const answer = await ask(path, { method: "POST", headers, body: JSON.stringify(body) });
  return (await answer.json()) as T;
}

/** The path of one session's route. */
export function of(sessionId: string, rest = ""): string {
  return `sessions/${encodeURIComponent(sessionId)}${rest}`;
}

/** Has the browser save what a route answers. */
export async function download(path: string, name: string): Promise<void> {
  const blob = await (await ask(path)).blob();
  const url = URL.createObjectURL(blob);
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  URL.revokeObjectURL(url);
}

/** Reads pages to the last, or to so many items. */
export async function pages<T>(
  path: string,
  query: Query,
  most: number,
  signal: AbortSignal,
): Promise<T[]> {
  const items: T[] = [];
  let next: string | null = null;
  do {
    const page: Page<T> = await get(path, { ...query, next }, signal);
    items.push(...page.items);
    next = page.next;
  } while (next !== null && items.length < most);
  return items;
}

/** Hears where a session stands until the signal; `told` is null while the line is down. */
export async function follow(
  sessionId: string,
  told: (stands: Stands | "gone" | null) => void,
  signal: AbortSignal,
): Promise<void> {
  while (!signal.aborted) {
    try {
      const answer = await ask(of(sessionId, "/stands"), { signal });
      if (answer.body === null) throw new Problem(0, "away", "The server does not answer.");
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        const events = (rest + value).split("\n\n");
        rest = events.pop() ?? "";
        for (const event of events) {
          if (event.startsWith("event: gone")) return told("gone");
          const data = /^data: (.*)$/m.exec(event)?.[1];
          if (data !== undefined) told(JSON.parse(data) as Stands);
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && (error.status === 404 || error.status === 410)) {
        return told("gone");
      }
    }
    told(null);
    await new Promise((resolve) => setTimeout(resolve, 1_000));
  }
}
