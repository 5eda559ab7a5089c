/** Which lines of a text are not those of another: the shortest way from one to the other. */
export function newLines(before: string, after: string): { text: string; fresh: boolean }[] {
  const old = before.split("\n");
  const now = after.split("\n");
  // longest[i][j]: how many lines old[i…] and now[j…] have in common, in order.
  const longest = Array.from({ length: old.length + 1 }, () =>
    new Array<number>(now.length + 1).fill(0),
  );
  const at = (i: number, j: number) => longest[i]?.[j] ?? 0;
  for (let i = old.length - 1; i >= 0; i--) {
    for (let j = now.length - 1; j >= 0; j--) {
      const row = longest[i];
      if (row)
        row[j] = old[i] === now[j] ? at(i + 1, j + 1) + 1 : Math.max(at(i + 1, j), at(i, j + 1));
    }
  }
  let i = 0;
  return now.map((text, j) => {
    while (i < old.length && old[i] !== text && at(i + 1, j) >= at(i, j + 1)) i++;
    const kept = i < old.length && old[i] === text;
    if (kept) i++;
    return { text, fresh: !kept };
  });
}
