/**
 * What the compiler knows of a session whose state is made by `reattach types`. Nothing here runs:
 * `npm run check` fails where a line that must not compile does.
 */

import { connect, type DeepReadonly, type Session } from "reattach";
import { SessionProvider, useField, useSession } from "../src/index.js";
import type { Comment, Review } from "./review.gen.js";

type Same<One, Other> =
  (<T>() => T extends One ? 1 : 2) extends <T>() => T extends Other ? 1 : 2 ? true : false;

function same<One, Other>(_: Same<One, Other>): void {}

export function state(): void {
  const session = connect<Review>({ session: "r" });
  same<typeof session, Session<Review>>(true);
  const { state } = session;
  same<typeof state.title, string>(true);
  same<typeof state.stage, "draft" | "done">(true);
  same<typeof state.answer, number | string | null>(true);
  same<typeof state.extra, unknown>(true);
  // A field with a default is there.
  same<typeof state.step, number>(true);
  same<(typeof state.shapes)[string], DeepReadonly<Review["shapes"][string]>>(true);
  const shape = state.shapes.a;
  if (shape?.kind === "mark") same<typeof shape.at, readonly [number, number]>(true);
  // @ts-expect-error: the other kind has no such field
  if (shape?.kind === "stroke") shape.at;
  // @ts-expect-error: there is no such field
  state.titel;
  // @ts-expect-error: what is read is frozen
  state.title = "";
  // @ts-expect-error: all the way down
  state.comments.push({ id: "c", text: "", replies: [], about: null });
  // @ts-expect-error: it may be missing
  state.comments[0].text;
}

export function changes(session: Session<Review>): void {
  session.update((draft) => {
    draft.title = "Minutes";
    draft.comments.push({ id: "c", text: "", replies: [], about: null });
    draft.seen.done = true;
    draft["half-typed"] = "";
    draft.loose.anything = 1;
    // @ts-expect-error: a number is no text
    draft.title = 1;
    // @ts-expect-error: not one of the stages
    draft.stage = "late";
    // @ts-expect-error: a comment has more fields
    draft.comments.push({ id: "c" });
    // @ts-expect-error: not one of the stages
    draft.seen.late = true;
  });
}

export function Part({ session }: { session: Session<Review> }) {
  const own = useSession<Review>();
  same<typeof own, Session<Review>>(true);
  const title = useSession((state: DeepReadonly<Review>) => state.title);
  same<typeof title, string>(true);
  const comments = useSession<Review, readonly Comment[]>(({ comments }) => comments);
  same<typeof comments, readonly Comment[]>(true);
  // @ts-expect-error: there is no such field
  useSession((state: Review) => state.titel);
  const [step, setStep] = useField<Review["step"]>("/step");
  same<typeof step, number | undefined>(true);
  setStep(2);
  // @ts-expect-error: a text is no number
  setStep("2");
  return <SessionProvider session={session}>{title}</SessionProvider>;
}

export function plain(): void {
  // Without a type a state is any JSON object.
  const session = connect({ session: "r" });
  const title = session.state.title;
  // @ts-expect-error: it may be anything
  title.length;
}
