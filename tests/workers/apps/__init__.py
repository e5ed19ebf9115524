"""A program of each system. ``send`` enqueues a job; the workers are started by ``fleet``."""

import os

BROKER = os.environ["LUALOCK_BROKER"]
