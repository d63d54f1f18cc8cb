"""The plainest service in Django REST framework that does what outflow does: customers, each with an event in the outbox.

It works on outflow's own tables. gunicorn serves it as service:application.
"""

import json
import os
import uuid
from urllib.parse import urlsplit

import django
from django.conf import settings

at = urlsplit(os.environ["DATABASE_URL"])
settings.configure(
    SECRET_KEY="of no use here",
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[],
    INSTALLED_APPS=[],
    USE_TZ=True,
    LOGGING_CONFIG=None,
    DATABASES={"default": {
        "ENGINE": "django.db.backends.postgresql", "NAME": at.path[1:], "USER": at.username, "HOST": at.hostname, "PORT": at.port,
        "CONN_MAX_AGE": None,
    }},
    REST_FRAMEWORK={
        "DEFAULT_AUTHENTICATION_CLASSES": [], "DEFAULT_PERMISSION_CLASSES": [], "UNAUTHENTICATED_USER": None,
        "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"], "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    },
)
django.setup()

from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import IntegrityError, models, transaction  # noqa: E402
from django.urls import path  # noqa: E402
from django.utils import timezone  # noqa: E402
from rest_framework import serializers  # noqa: E402
from rest_framework.response import Response  # noqa: E402
from rest_framework.views import APIView  # noqa: E402


class PlainJSON(models.TextField):
    """A json column that takes text."""

    def db_type(self, connection):
        return "json"

    def get_placeholder(self, value, compiler, connection):
        return "%s::json"


class Customer(models.Model):
    id = models.UUIDField(primary_key=True)
    version = models.BigIntegerField()
    name = models.TextField()
    email = models.TextField()
    email_canonical = models.TextField()
    phone = models.TextField()
    address = PlainJSON(null=True)
    status = models.TextField()
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    class Meta:
        app_label, db_table, managed = "service", "customers", False


class Event(models.Model):
    position = models.BigAutoField(primary_key=True)
    event_id = models.UUIDField()
    aggregate_type = models.TextField()
    aggregate_id = models.UUIDField()
    aggregate_version = models.BigIntegerField()
    type = models.TextField()
    key = models.TextField()
    before = PlainJSON(null=True)
    after = PlainJSON(null=True)
    metadata = PlainJSON()
    occurred_at = models.DateTimeField()

    class Meta:
        app_label, db_table, managed = "service", "outbox", False


class AddressSerializer(serializers.Serializer):
    line1 = serializers.CharField(max_length=200)
    line2 = serializers.CharField(max_length=200, required=False)
    city = serializers.CharField(max_length=100)
    postal_code = serializers.CharField(max_length=20, required=False)
    country = serializers.RegexField(r"^[A-Z]{2}$")


class CustomerSerializer(serializers.Serializer):
    name = serializers.CharField(max_length=200)
    email = serializers.EmailField(max_length=254)
    phone = serializers.CharField(max_length=40, required=False, default="")
    address = AddressSerializer(required=False)
    status = serializers.ChoiceField(["active", "suspended", "closed"], default="active")


class Customers(APIView):
    def post(self, request):
        given = CustomerSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        now = timezone.now()
        after = {"id": str(uuid.uuid4()), "version": 1, **given.validated_data, "created_at": now.isoformat(), "updated_at": now.isoformat()}
        address = after.get("address")
        try:
            with transaction.atomic():
                Customer.objects.create(
                    id=after["id"], version=1, name=after["name"], email=after["email"], email_canonical=after["email"].lower(), phone=after["phone"],
                    address=address and text(address), status=after["status"], created_at=now, updated_at=now)
                Event.objects.create(
                    event_id=uuid.uuid4(), aggregate_type="customer", aggregate_id=after["id"], aggregate_version=1, type="customer.created.v1",
                    key=after["id"], before=None, after=text(after), metadata='{"actor":"django"}', occurred_at=now)
        except IntegrityError:
            return Response({"detail": "This email belongs to another customer."}, status=409)
        return Response(after, status=201)


def text(value):
    return json.dumps(value, separators=(",", ":"))


urlpatterns = [path("api/customers", Customers.as_view())]
application = get_wsgi_application()
