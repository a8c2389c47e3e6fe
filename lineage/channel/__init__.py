"""The promotion channel: who is champion of each model, for whoever has the ledger's root key and nothing else.

A channel is a TUF repository (https://theupdateframework.github.io/specification/latest/) of small documents. Its root
names the keys, the promotion key signs what it says, and the witness key says, for a short while each time, that this
is still so. A client needs no database, no MLflow and no trust in the network or the place that it reads from:

    from lineage.channel.client import champion
    now = champion(root, "https://models.example/channel", "portraits", Path("/var/lib/channel"))

`publisher` makes and fills a channel, `client` reads it. Importing `client` loads neither SQLAlchemy, mlflow nor torch.
"""
