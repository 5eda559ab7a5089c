/** Going on with another device: a link that lets one in, to be read by its camera or sent to it. */

import { useEffect, useId, useRef, useState } from "react";
import type { Handoff } from "reattach";
import { useSession } from "reattach-react";
import { encode } from "uqr";
import { type Address, addressForOthers, base, onlyHere } from "./server";
import type { State } from "./state";

interface Shown extends Handoff {
  /** Where others find this page, where its own address is this machine's alone. */
  others: Address | null;
}

export function HandOff({ startAnew }: { startAnew: () => void }) {
  const session = useSession<State>();
  const [shown, setShown] = useState<Shown | null>(null);
  const [said, setSaid] = useState("");
  const field = useRef<HTMLInputElement>(null);

  const make = async () => {
    setSaid("");
    const others = onlyHere() ? await addressForOthers() : null;
    const page = others?.reachable && others.address ? inNetwork(others.address) : base;
    try {
      setShown({ ...(await session.handOff(page)), others });
    } catch (error) {
      const { code, message } = error as { code?: string; message: string };
      setSaid(
        code === "unreachable"
          ? "That needs the server, which cannot be reached just now."
          : `The server makes no link: ${message}`,
      );
    }
  };
  const copy = async () => {
    try {
      // Only in a secure context there is a clipboard.
      await navigator.clipboard.writeText(shown?.link ?? "");
      setSaid("Copied.");
    } catch {
      field.current?.select();
      setSaid("Copy it from the field.");
    }
  };
  useEffect(() => {
    if (!shown) return;
    const timer = setTimeout(() => {
      setShown(null);
      setSaid("The link has had its ten minutes.");
    }, shown.expiresAt - Date.now());
    return () => clearTimeout(timer);
  }, [shown]);

  return (
    <div className="foot">
      <p className="foot-actions">
        <button type="button" className="quiet" onClick={make}>
          Continue on another device
        </button>
        <button type="button" className="quiet" onClick={startAnew}>
          Start anew
        </button>
      </p>
      {shown && (
        <section className="handoff" aria-label="Continue on another device">
          {(shown.others === null || shown.others.reachable) && <Code text={shown.link} />}
          <div>
            <p className="help">
              Open it there within ten minutes. It is for one device, and for this document alone.
            </p>
            {shown.others && <FromHere {...shown.others} />}
            <p className="link">
              <input
                ref={field}
                type="text"
                readOnly
                aria-label="The link for another device"
                value={shown.link}
                onFocus={(event) => event.target.select()}
              />
              <button type="button" className="secondary" onClick={copy}>
                Copy
              </button>
            </p>
          </div>
        </section>
      )}
      <p className="help" role="status">
        {said}
      </p>
    </div>
  );
}

/** What the address of this page, which is this machine's alone, means to a phone. */
function FromHere({ address, reachable }: Address) {
  if (address === null) {
    return (
      <p className="help">
        This page is at an address of this computer alone: a phone cannot open it.
      </p>
    );
  }
  return reachable ? (
    <p className="help">
      This page is at an address of this computer alone. The link leads to <b>{address}</b>, where
      devices in your network find it.
    </p>
  ) : (
    <p className="help">
      This page is at an address of this computer alone: a phone cannot open it. Start the server
      with <code>make run HOST=0.0.0.0</code>, and devices in your network find it at{" "}
      <b>{address}</b>.
    </p>
  );
}

function inNetwork(address: string): string {
  return new URL(new URL(base).pathname, address).href;
}

/** A QR code, dark on light in any scheme: cameras want it so. */
function Code({ text }: { text: string }) {
  const id = useId();
  const { data, size } = encode(text, { ecc: "M", border: 2 });
  const dark = data.flatMap((row, y) => row.flatMap((on, x) => (on ? [`M${x} ${y}h1v1h-1z`] : [])));
  return (
    <svg
      className="code"
      viewBox={`0 0 ${size} ${size}`}
      shapeRendering="crispEdges"
      role="img"
      aria-labelledby={id}
    >
      <title id={id}>The link as a QR code, for the other device's camera</title>
      <rect width={size} height={size} fill="#fff" />
      <path d={dark.join("")} fill="#000" />
    </svg>
  );
}
