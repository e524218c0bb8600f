"""python zero_to_fp32.py CHECKPOINT_FOLDER OUTPUT_FILE: the name in the original release for `nbp.convert`."""

import sys

from nbp.convert import main

if __name__ == "__main__":
    main(["deepspeed-to-fp32", *sys.argv[1:]])
