#!/bin/sh
# Asks a person whether a customer gets the money back, and ends with the decision. Needs nothing but a POSIX shell.
set -eu
if [ -z "${CONVOKE_ANSWERS:-}" ]; then
    # The name is part of the JSON on the input, with its escapes, and becomes part of JSON again.
    customer=$(tr '\n' ' ' | sed 's/.*"customer": *"\([^"]*\)".*/\1/')
    printf '{"question": "Give %s the refund that the ticket asks for?", "for": "approval"}\n' "$customer" >&2
    exit 0
fi
# After the answer the command runs again.
printf '{"decision": %s}\n' "$CONVOKE_ANSWERS"
