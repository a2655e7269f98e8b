#!/bin/sh
# A web app as a CGI program of busybox httpd: says what was asked for, and by whom.
printf 'Content-Type: text/plain\r\n\r\n%s for %s\n' "$PATH_INFO" "$HTTP_X_FORWARDED_FOR"
