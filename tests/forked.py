"""What stands for Python where conftest.py's `forked` is asked for: python -IS tests/forked.py SOCKET [-u] WORDS...

Hands its words, its folder, its environment and its outputs over, then the signals that it gets; ends as the program
ends that they are.
"""
import json
import os
import signal
import socket
import sys

address, *words = sys.argv[1:]
if words[0] == "-u":                                    # of torchrun; what is forked ends by flushing
    del words[0]
with socket.socket(socket.AF_UNIX) as server:
    server.connect(address)
    socket.send_fds(server, [b"."], [1, 2])
    server.sendall(json.dumps([words, os.getcwd(), dict(os.environ)]).encode() + b"\n")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: server.sendall(bytes([number])))
    sys.exit(int(server.recv(9)))
