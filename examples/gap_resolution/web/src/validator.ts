/**
 * What the form library asks about data: which of a schema's alternatives fits. The verdict on an
 * answer is the server's. An interpreter, since what compiles schemas needs a hole in the policy
 * against injected scripts.
 */

import { type Schema, Validator } from "@cfworker/json-schema";
import type { RJSFSchema, ValidatorType } from "@rjsf/utils";

const NOTHING_WRONG = { errors: [], errorSchema: {} };

export const validator: ValidatorType = {
  validateFormData: () => NOTHING_WRONG,
  rawValidation: () => ({ errors: [] }),
  isValid(schema: RJSFSchema, data: unknown, root: RJSFSchema) {
    const whole = { definitions: root.definitions ?? {}, ...schema };
    return new Validator(whole as Schema, "7").validate(data).valid;
  },
};
