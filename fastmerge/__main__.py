"""python -m fastmerge"""

from .cli import main

main()
