"""A worker without torch, for the tests of engines: it does what the word `do` says, in the folder of runs.

Every attempt at a cell adds a line to runs/CELL/tries, and the one that finishes it makes runs/CELL/result.json, which
must not be there yet. Words: go, fail, "die N" (the first N attempts), "once" (the first attempt does not end),
wait (none does), "meet CELL" (which must begin, too), "half N": once N results are there, cells end no more until the
file `lost` is there, and on a machine with NODE set not even then.
"""

STUB = """
import json, os, signal, sys, threading, time
from pathlib import Path

def listen():
    for line in sys.stdin:
        requests.append(json.loads(line))
        come.set()
    os.write(2, b"%d told to stop\\n" % os.getpid())
    os._exit(0)

def until(file):
    end = time.monotonic() + LONG
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.02)

signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGUSR2, lambda *_: None)
LONG = 300  # seconds: for ever, where all is well
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
    if do == "wait" or (do == "once" and tries == 1):
        time.sleep(LONG)
    if do == "meet":
        until(folder.parent / number / "tries")
    if do == "half" and len(list(folder.parent.glob("*/result.json"))) >= int(number):
        (folder / "held").write_text(os.environ.get("NODE", "first"))
        until(Path("never" if "NODE" in os.environ else "lost"))
    with (folder / "result.json").open("x") as stream:
        json.dump({"cell": request["cell"]}, stream)
    print(json.dumps({"state": "done", "reason": str(os.getpid())}), flush=True)
"""
