#!/bin/sh
# The cheap agent: looks for words. Reads the task's input (JSON) from standard input and writes one
# JSON result. Needs nothing but a POSIX shell and awk.
set -eu
tr '[:upper:]\n' '[:lower:] ' | awk '
{ text = text $0 }
function has(words) { return text ~ words }
END {
    category = "question"; urgency = 2; reason = "no word that I know"
    if (has("typo|thanks|idea|dark mode|love the")) { category = "feedback"; urgency = 1; reason = "sounds like feedback" }
    if (has("upgrade|discount|student plan|price|account manager")) { category = "sales"; urgency = 2; reason = "asks what it costs or whom to ask" }
    if (has("invoice|charged|refund|payment|billing|vat number")) { category = "billing"; urgency = 3; reason = "is about money" }
    if (has("password|locked out|log in|sign-on|verification|invite|delete the account")) { category = "account"; urgency = 3; reason = "is about getting in or out" }
    if (has("crash|error|blank|cuts off|late|wrong|slow|status 4|nothing")) { category = "bug"; urgency = 3; reason = "something does not work" }
    if (has("down|503|status 500|cannot work|data loss|are missing")) { category = "outage"; urgency = 5; reason = "people cannot work" }
    if (has("breach|security|suspicious|of others|of other guests")) { category = "security"; urgency = 5; reason = "data may be in the wrong hands" }
    if (has("\"plan\": *\"enterprise\"") && urgency > 1 && urgency < 5) { urgency = urgency + 1; reason = reason ", and it is an enterprise" }
    printf "{\"category\":\"%s\",\"urgency\":%d,\"reason\":\"%s\"}\n", category, urgency, reason
}'
