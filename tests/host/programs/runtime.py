#!/usr/bin/python3 -I
"""Be runc, for engines that do not know all capabilities: add those that IGT_CAPABILITIES names."""

import json
import os
import sys

words = sys.argv[1:]
if "create" in words:
    path = os.path.join(words[words.index("--bundle") + 1], "config.json")
    with open(path) as file:
        process = (config := json.load(file))["process"]
    given = dict(each.split("=", 1) for each in process["env"]).get("IGT_CAPABILITIES", "")
    for names in process["capabilities"].values():
        names.extend(filter(None, given.split(",")))
    with open(path, "w") as file:
        json.dump(config, file)
os.execvp("runc", ["runc", *words])
