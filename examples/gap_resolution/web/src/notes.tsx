/** What people on this document tell each other; all that they type at once ends up in it. */

import { useSession } from "reattach-react";
import { noting, type Shown, type State } from "./state";
import { useText } from "./text-field";

export function Notes() {
  const session = useSession<State>();
  const notes = useSession((state: Shown) => state.notes ?? "");
  const text = useText<HTMLTextAreaElement>(notes, (...typed) => {
    session.change(noting(session.state.notes ?? "", typed));
  });
  return (
    <section className="notes" aria-labelledby="notes-title">
      <h2 className="small">
        <label id="notes-title" htmlFor="notes">
          Notes
        </label>
      </h2>
      <textarea {...text} id="notes" rows={2} aria-describedby="notes-help" autoComplete="off" />
      <p className="help" id="notes-help">
        For everybody on this document. They are not part of the file.
      </p>
    </section>
  );
}
