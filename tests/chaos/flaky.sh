#!/bin/sh
# A handler of the chaos runs (`keepup run --handler exec=…`): every 37th record it is asked for has to come again.
asked=0
while read -r _; do
    asked=$((asked + 1))
    if [ $((asked % 37)) -eq 0 ]; then
        echo retry not this time
    else
        echo 'done'
    fi
done
