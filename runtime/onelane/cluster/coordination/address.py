"""How etcd is reached, by `[cluster]`."""

import ssl

from onelane.cluster.coordination.etcd import EtcdAddress
from onelane.core.cluster_settings import ClusterSettings, EtcdTls
from onelane.core.lease import LeaseTerms
from onelane.errors import BadConfig


def etcd_address(settings: ClusterSettings) -> EtcdAddress:
    """Raises:
    BadConfig: a file of TLS cannot be used.
    """
    terms = LeaseTerms(settings.lease_s)
    return EtcdAddress(
        endpoints=settings.etcd,
        user=settings.etcd_user,
        password=settings.etcd_password.text,
        tls=None if settings.etcd_tls is None else _context(settings.etcd_tls),
        timeout_s=terms.request_s,
        linger_s=terms.renewal_s,
        late_s=terms.retry_s,
        quiet_s=settings.lease_s,
    )


def _context(settings: EtcdTls) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca)
    except OSError as error:
        raise BadConfig("cluster", [f"etcd_tls.ca: {settings.ca} cannot be used: {error}"]) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.cert is not None:
        try:
            context.load_cert_chain(settings.cert, settings.key)
        except OSError as error:
            names = f"etcd_tls.cert, etcd_tls.key: {settings.cert}, {settings.key}"
            raise BadConfig("cluster", [f"{names} cannot be used: {error}"]) from None
    return context
