#!/bin/sh
# A program that is a script: the kernel runs the interpreter, and the script keeps its name. It stays until stdin ends.
echo "{\"fact\":\"script\",\"pid\":$$}"
while read -r line; do :; done
exit 5
