#!/usr/bin/env python3
"""Reads the output of `referral demo --exit --json` and checks what the demonstration promises.

At least 24 queries, every one answered, at least 20 of them (or five in six) referred as a reader would.
"""

import json
import sys


def main():
    lines = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8") if line.strip()]
    rows = [line for line in lines if "query" in line]
    faults = []
    if len(rows) < 24:
        faults.append(f"only {len(rows)} queries")
    unanswered = [row["id"] for row in rows if not row.get("text", "").strip()]
    if unanswered:
        faults.append(f"no answer to {', '.join(unanswered)}")
    judged = [row for row in rows if row.get("expected")]
    right = [row for row in judged if row["expert"] in row["expected"]]
    if len(right) < max(20, len(judged) * 5 // 6):
        wrong = [f"{row['id']} to {row['expert']} instead of {row['expected']}" for row in judged if row not in right]
        faults.append(f"only {len(right)} of {len(judged)} referred as expected: {'; '.join(wrong)}")
    print(f"demo: {len(rows)} queries, {len(right)} of {len(judged)} referred as expected")
    for fault in faults:
        print(f"demo: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
