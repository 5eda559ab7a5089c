// Made by: reattach types tests.support.review:Review
// Change the model, and make it anew.

/**
 * The state of a review.
 *
 * A paragraph that is longer than a line of TypeScript may be, so that it has to go on in another
 * one. An end of comment: *\/
 */
export interface Review {
  title: string;
  stage: Stage;
  /** Counts from 0. */
  step: number;
  comments: Comment[];
  shapes: { [key: string]: Shape };
  rated: Rated_int | null;
  loose: Loose;
  seen: { [Key in Stage]?: boolean };
  notes: { [key: string]: { [key: string]: (number | null)[] } };
  extra: unknown;
  many: unknown[];
  answer: number | string | null;
  "half-typed": string;
  /** @deprecated */
  old: string;
}

/** What somebody said, and what was said to that. */
export interface Comment {
  id: string;
  text: string;
  replies: Comment[];
  about: Comment | null;
}

export interface Loose {
  source: string;
  [key: string]: unknown;
}

export interface Mark {
  kind: "mark";
  at: [number, number];
}

export interface Rated_int {
  value: number;
  stars: 1 | 2 | 3;
}

/** Something drawn. */
export type Shape = Mark | Stroke;

/** How far a review has come. */
export type Stage = "draft" | "done";

export interface Stroke {
  kind: "stroke";
  points: [number, number][];
}
