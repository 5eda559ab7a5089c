// Something that is read: the last that came stays until the next is there.

import { useEffect, useRef, useState } from "react";
import { Problem } from "./api.js";

export interface Read<T> {
  data: T | null;
  error: Problem | null;
  /** Whether the data belongs to what is asked for now. */
  fresh: boolean;
}

/** Reads again whenever `key` changes; without data of another `about`. */
export function useRead<T>(
  about: string,
  key: unknown,
  load: (signal: AbortSignal) => Promise<T>,
  delay = 0,
): Read<T> {
  const [found, put] = useState<{
    about: string;
    key: unknown;
    data: T | null;
    error: Problem | null;
  }>({ about: "", key: null, data: null, error: null });
  const latest = useRef(load);
  latest.current = load;
  useEffect(() => {
    const abort = new AbortController();
    const begin = () => {
      latest.current(abort.signal).then(
        (data) => {
          if (!abort.signal.aborted) put({ about, key, data, error: null });
        },
        (error: unknown) => {
          if (abort.signal.aborted) return;
          const problem = error instanceof Problem ? error : new Problem(0, "error", String(error));
          put((old) => ({
            about,
            key,
            data: old.about === about ? old.data : null,
            error: problem,
          }));
        },
      );
    };
    const timer = delay > 0 ? setTimeout(begin, delay) : undefined;
    if (delay === 0) begin();
    return () => {
      clearTimeout(timer);
      abort.abort();
    };
  }, [about, key, delay]);
  const mine = found.about === about;
  return {
    data: mine ? found.data : null,
    error: mine ? found.error : null,
    fresh: mine && found.key === key,
  };
}

/** The time, told so often. */
export function useNow(every: number): number {
  const [now, tell] = useState(Date.now);
  useEffect(() => {
    const timer = setInterval(() => tell(Date.now()), every);
    return () => clearInterval(timer);
  }, [every]);
  return now;
}
