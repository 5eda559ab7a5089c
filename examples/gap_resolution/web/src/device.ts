/** How the session's other devices see this one: "Firefox on Windows". */
export function deviceName(agent = navigator.userAgent): string {
  const browser = first(agent, {
    Edge: /Edg/,
    Opera: /OPR/,
    Firefox: /Firefox|FxiOS/,
    Chrome: /Chrom|CriOS/,
    Safari: /Safari/,
  });
  const system = first(agent, {
    Android: /Android/,
    iPhone: /iPhone/,
    iPad: /iPad/,
    Windows: /Windows/,
    Mac: /Mac OS/,
    Linux: /Linux/,
  });
  return system ? `${browser ?? "A browser"} on ${system}` : (browser ?? "A browser");
}

function first(agent: string, names: Readonly<Record<string, RegExp>>): string | undefined {
  return Object.entries(names).find(([, mark]) => mark.test(agent))?.[0];
}
