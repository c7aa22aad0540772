"""What stands for Python where conftest.py's `forked` is asked for: python -IS tests/forked.py SOCKET WORDS...

Hands its words, its folder, its environment and its outputs over, and ends as the program ends that they are.
"""
import json
import os
import socket
import sys

with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    socket.send_fds(server, [b"."], [1, 2])
    server.sendall(json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode())
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.recv(9)))
