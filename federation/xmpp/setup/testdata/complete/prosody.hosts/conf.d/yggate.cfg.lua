s2s_require_encryption = true
s2s_secure_auth = true
unbound = {
    hoststxt = "/srv/xmpp/hosts";
    resolvconf = false;
    options = { ["local-zone:"] = ". static" };
}
VirtualHost "a.grid"
    s2s_ssl = { key = "/var/lib/yggate/xmpp/server.pem"; certificate = "/var/lib/yggate/xmpp/server.pem"; cafile = "/var/lib/yggate/xmpp/ca.pem"; capath = "/etc/ssl/certs" }
