s2s_require_encryption = true
s2s_secure_auth = true
unbound = {
    resolvconf = false;
    hoststxt = false;
    forward = { "127.0.10.53@53" };
}
VirtualHost "a.grid"
    s2s_ssl = { key = "/var/lib/yggate/xmpp/server.pem"; certificate = "/var/lib/yggate/xmpp/server.pem"; cafile = "/var/lib/yggate/xmpp/ca.pem"; capath = "/etc/ssl/certs" }
