#!/usr/bin/env python3
"""Runs commands on a recorded guest and compares what they print with what is kept beside the recording.

    test_views.py PROGRAM FOLDER            compares; ends with 1 and shows what differs
    test_views.py PROGRAM FOLDER --update   writes what is kept anew, for a change that is meant; see it with git diff

FOLDER, of one kernel, holds what record.py made: guest.recording, profile.json.xz, and `commands`, each line of which
is the name of a file and the command whose output it keeps: JSON where it is called so, else text. All of it comes from
the recording, so all of it is compared, times too.
"""

import difflib
import json
import os
import pathlib
import subprocess
import sys

WIDTH = 116
SHOWN = 60  # lines of a difference


def commands(folder):
    """The file that holds what a command prints, and the command's words."""
    lines = (folder / "commands").read_text().splitlines()
    if not lines:
        raise SystemExit(f"{folder}/commands is empty")
    for line in lines:
        name, *words = line.split()
        yield folder / name, words


def run(program, target, words, is_json, *options):
    """What a command prints of TARGET, parsed if it is JSON."""
    completed = subprocess.run(
        [str(word) for word in (program, words[0], target, *words[1:], *(["--json"] if is_json else []), "--no-cache",
                                *options)],
        capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL,
        env={**os.environ, "TZ": "UTC", "LC_ALL": "C.UTF-8", "NO_COLOR": "1"})
    if completed.returncode:
        raise SystemExit(f"lararium {' '.join(words)} ended with {completed.returncode}: {completed.stderr}")
    return json.loads(completed.stdout) if is_json else completed.stdout


def replay(program, folder, words, is_json):
    return run(program, folder / "guest.recording", words, is_json, "--profile", folder / "profile.json.xz")


def is_json(path):
    return path.suffix == ".json"


def dense(value, indent=" "):
    """JSON in lines of at most WIDTH, as many members in each as fit: to keep."""
    flat = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (dict, list)) or len(indent) + len(flat) < WIDTH:
        return flat
    is_dict = isinstance(value, dict)
    lines = [""]
    for key, inner in value.items() if is_dict else enumerate(value):
        text = (json.dumps(key) + ": " if is_dict else "") + dense(inner, indent + " ")
        joined = f"{lines[-1]}, {text}"
        # Objects of a list begin a line each, for a difference to show whole ones.
        if lines[-1] and "\n" not in joined and len(indent) + len(joined) < WIDTH and not isinstance(inner, dict):
            lines[-1] = joined
        else:
            lines.append(text)
    body = f",\n{indent}".join(line for line in lines if line)
    return f"{'{' if is_dict else '['}\n{indent}{body}\n{indent[1:]}{'}' if is_dict else ']'}"


def difference(expected, seen, *names):
    """A unified diff of two texts or documents, of these with one member a line; empty if they are the same."""
    if expected == seen:
        return []
    texts = [(value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False)).splitlines()
             for value in (expected, seen)]
    return list(difflib.unified_diff(*texts, *names, lineterm="")) or ["they differ in line ends"]


def compare(program, folder):
    differing = 0
    for path, words in commands(folder):
        seen = replay(program, folder, words, is_json(path))
        kept = path.read_text()
        lines = difference(json.loads(kept) if is_json(path) else kept, seen, str(path), f"lararium {' '.join(words)}")
        if lines:
            differing += 1
            print("\n".join(lines[:SHOWN]))
            print(f"... {len(lines) - SHOWN} more lines\n" if len(lines) > SHOWN else "")
    if differing:
        here = pathlib.Path(__file__).resolve().parent
        print(f"{differing} views differ from what was recorded. If that is meant:\n"
              f"  {here}/test_views.py {program} {folder} --update\n"
              "If a view now reads memory or asks for types that were not recorded, on a machine that boots guests:\n"
              f"  {here}/record.py {folder.name}")
    return differing


def update(program, folder):
    for path, words in commands(folder):
        seen = replay(program, folder, words, is_json(path))
        path.write_text(dense(seen) + "\n" if is_json(path) else seen)


def main():
    if len(sys.argv) not in (3, 4) or sys.argv[3:] not in ([], ["--update"]):
        print(__doc__, file=sys.stderr)
        return 2
    program, folder = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    if sys.argv[3:]:
        update(program, folder)
        return 0
    return 1 if compare(program, folder) else 0


if __name__ == "__main__":
    sys.exit(main())
