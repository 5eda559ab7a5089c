/** What every error of this package is. Its `code` is the protocol's. */
export class ReattachError extends Error {
  readonly code: string;

  constructor(code: string, message: string) {
    super(message);
    this.name = "ReattachError";
    this.code = code;
  }
}

/** An operation that makes no sense against the state that it was given. */
export class OpError extends ReattachError {
  /** The JSON Pointer of the operation that could not be carried out, where there is one. */
  readonly path: string | undefined;

  constructor(code: string, message: string, path?: string) {
    super(code, path === undefined ? message : `${message} (at "${path}")`);
    this.name = "OpError";
    this.path = path;
  }
}

/** What a caught value says of itself. */
export function text(reason: unknown): string {
  return reason instanceof Error ? reason.message : String(reason);
}

/** A newer release of the application has written what this one would have to read or change. */
export function outdated(): ReattachError {
  return new ReattachError(
    "outdated",
    "a newer release of this application keeps its data here in another way: reload the page",
  );
}

export function isOutdated(reason: unknown): boolean {
  return reason instanceof ReattachError && reason.code === "outdated";
}
