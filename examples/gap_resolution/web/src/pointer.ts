/**
 * A press on a button takes the focus from a field, which may say more then and be higher: the
 * button would be gone from below the finger before it is lifted, and the press come to nothing.
 */

let pressed = false;
const waiting: (() => void)[] = [];

addEventListener("pointerdown", () => note(true), true);
for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => note(false), true);

function note(now: boolean): void {
  pressed = now;
  // The click comes right after the pointer is up.
  if (!now) setTimeout(() => waiting.splice(0).map((act) => act()));
}

/** Acts at once, or when the pointer that is down has been lifted and its click is over. */
export function afterPress(act: () => void): void {
  if (pressed) waiting.push(act);
  else act();
}
