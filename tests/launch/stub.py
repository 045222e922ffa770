"""A worker without torch, for the tests of engines: it does what the word `do` says, in the folder of runs.

Every attempt at a cell adds a line to runs/CELL/tries, and the one that finishes it makes runs/CELL/result.json, which
must not be there yet.
"""

STUB = """
import json, os, signal, sys, threading, time
from pathlib import Path

def listen():
    for line in sys.stdin:
        requests.append(json.loads(line))
        come.set()
    os.write(2, b"told to stop\\n")
    os._exit(0)

signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGUSR2, lambda *_: None)
requests, come = [], threading.Event()
threading.Thread(target=listen, daemon=True).start()
while True:
    come.wait()
    come.clear()
    request = requests.pop()
    folder = Path(request["runs"]) / request["cell"]
    folder.mkdir(exist_ok=True)
    with (folder / "tries").open("a") as stream:
        told = [os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "NODE", "VLBENCH_TEST")]
        print(os.getpid(), *told, file=stream)
    tries = len((folder / "tries").read_text().splitlines())
    do, _, number = request["words"]["do"].partition(" ")
    if do == "die" and tries <= int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "fail":
        print(json.dumps({"state": "failed", "reason": "a mistake"}), flush=True)
        continue
    if do == "sleep" or (do == "once" and tries == 1):
        time.sleep(float(number))
    with (folder / "result.json").open("x") as stream:
        json.dump({"cell": request["cell"]}, stream)
    print(json.dumps({"state": "done", "reason": str(os.getpid())}), flush=True)
"""
