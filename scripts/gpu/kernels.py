"""What each kernel of Nsight Compute's launches takes, largest share first.

Usage: kernels.py FILE.csv"""

import csv
import re
import sys


def main():
    lines = [line for line in open(sys.argv[1]) if line.startswith('"')]
    launches = {}
    for row in csv.DictReader(lines):
        if row["ID"].isdigit():
            launch = launches.setdefault(row["ID"], {"name": row["Kernel Name"]})
            value = float(row["Metric Value"].replace(",", ""))
            unit = row["Metric Unit"]
            if row["Metric Name"].startswith("gpu__time"):
                scale = {"ns": 1e-3, "nsecond": 1e-3, "us": 1, "usecond": 1, "ms": 1e3, "msecond": 1e3}
                launch["us"] = value * scale[unit]
            else:
                scale = {"byte": 1e-6, "Kbyte": 1e-3, "Mbyte": 1, "Gbyte": 1e3}
                launch["MB"] = value * scale[unit]
            launch["grid"] = row.get("Grid Size", "")
    if not launches:
        sys.exit(f"no launch in {sys.argv[1]}")
    kinds = {}
    for launch in launches.values():
        # Products alike in shape of launch may read different matrices.
        name = re.sub(r"\(.*", "", launch["name"])[:40] + f" {launch['grid']} {launch.get('MB', 0):.0f} MB"
        kinds.setdefault(name, []).append(launch)
    total = sum(launch["us"] for launch in launches.values())
    print(f"{len(launches)} launches, {total:.0f} us")
    for name, of_kind in sorted(kinds.items(), key=lambda kind: -sum(x["us"] for x in kind[1])):
        took = sum(x["us"] for x in of_kind)
        read = sum(x.get("MB", 0) for x in of_kind)
        print(f"{took / total:6.1%} {len(of_kind):4} x {took / len(of_kind):8.2f} us, "
              f"{read / len(of_kind):8.2f} MB, {read / took * 1e3:5.0f} GB/s  {name}")


if __name__ == "__main__":
    main()
