/** The value at a path of the protocol: a JSON Pointer, elements of lists as `#id`. */
export function at(state: unknown, path: string): unknown {
  let value = state;
  for (const part of path.split("/").slice(1)) {
    const token = part.replaceAll("~1", "/").replaceAll("~0", "~");
    if (Array.isArray(value)) {
      value = value.find((one) => isObject(one) && `#${String(one.id)}` === token);
    } else if (isObject(value) && Object.hasOwn(value, token)) {
      value = value[token];
    } else {
      return undefined;
    }
  }
  return value;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}
