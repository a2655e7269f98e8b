#!/bin/sh
# Writes a page to the volume every second; the rename makes it whole for whoever reads it meanwhile.
n=0
while n=$((n + 1)); do
	echo "written $n" >/data/.new
	mv /data/.new /data/page
	sleep 1
done
