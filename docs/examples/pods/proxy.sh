#!/bin/sh
# A reverse proxy as a CGI program of busybox httpd: /cgi-bin/proxy/PATH asks the web app of the same pod for PATH, over localhost.
# The app listens on 127.0.0.1:9000 alone, so this is the only way to it from outside of the pod.
case $PATH_INFO in
'' | *[!A-Za-z0-9/._-]* | *..*)
	printf 'Status: 400 Bad Request\r\n\r\n'
	exit
	;;
esac
if page=$(wget -qO- --header "X-Forwarded-For: $REMOTE_ADDR" "http://127.0.0.1:9000/cgi-bin/app$PATH_INFO"); then
	printf 'Content-Type: text/plain\r\n\r\n%s\n' "$page"
else
	printf 'Status: 502 Bad Gateway\r\nContent-Type: text/plain\r\n\r\nthe app does not answer\n'
fi
