package matrix

import "net/http"

// How one gateway tells the other what a request is: method and body are its own,
// the rest stands in headers, so that nothing between the two reads a path that is
// not its own and tidies it up.
const (
	headerTarget = "Yggate-Target" // the request-target, byte for byte as it was signed
	headerServer = "Yggate-Server" // the server name that it is for
)

// What passes of headers. All else says something of the machines on the way, or
// belongs to one connection.
var (
	requestHeaders = []string{
		"Authorization", "Content-Type", "Accept", "User-Agent", "Range", "If-None-Match", "If-Modified-Since",
	}
	responseHeaders = []string{
		"Content-Type", "Content-Length", "Content-Disposition", "Content-Range", "Accept-Ranges", "Content-Security-Policy",
		"Cache-Control", "Etag", "Last-Modified", "Retry-After",
	}
)

func copyHeaders(to, from http.Header, names []string) {
	for _, name := range names {
		if values := from[name]; len(values) > 0 {
			to[name] = values
		}
	}
}
